"""The loss of DPKD. Imports torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax


def distillation_losses(student: Tensor, teacher: Tensor, labels: Tensor, weight: float, temperature: float) -> Tensor:
    """Return losses [B] (1 - w) CE(y, student) + w t^2 KL(teacher_t || student_t), each of one example alone.

    Source: Hinton et al., 2015; Mireshghallah et al., NeurIPS 2022, section 3. Whether they scale by t^2 is not known: ours.

    Args:
        student, teacher: [B, C] logits; no gradient goes to the teacher's. labels: [B].
    """
    hard = cross_entropy(student, labels, reduction="none")
    soft = kl_div(
        log_softmax(student / temperature, dim=-1),
        log_softmax(teacher.detach() / temperature, dim=-1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    return (1 - weight) * hard + weight * temperature**2 * soft
