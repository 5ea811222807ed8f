"""Private model compression: DP knowledge distillation, structured and unstructured DP iterative magnitude pruning.

Source: Mireshghallah et al., NeurIPS 2022 (arXiv 2206.01838). Its code is not public; what it leaves open is a named setting.
"""
