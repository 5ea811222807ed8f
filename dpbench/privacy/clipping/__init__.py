"""What is bounded: scope x function x threshold, one file each. How noise follows from the bounds: `dpbench.privacy.mechanism`.

A scope gives `groups(layers) -> groups`, lists of names in the order of the model. What it needs beyond names it declares in
`PLUGIN`, and gets by keyword: `needs: ["sizes"]`, trained parameters of each layer; `needs: ["devices"]`, the clipping's number
of devices. `unit: "tensor"`: names are those of tensors, not of layers. `stages: True`: in a pipeline every stage can group its
own layers.

A function gives `factor`. `threshold: True`: it leaves alone what is within the bound, so that there is a threshold
that can adapt.
"""
