"""Clipping scopes, functions and thresholds, one file each. `dpbench.privacy.mechanism` derives the noise from the bounds.

A scope defines `groups(layers) -> groups`, lists of names in the order of the model. It declares in `PLUGIN` what it needs beyond
names, and receives that by keyword: `needs: ["sizes"]` for the number of trained parameters of each layer, `needs: ["devices"]`
for the clipping's number of devices. With `unit: "tensor"` the names are those of tensors instead of layers. With `stages: True`
every stage of a pipeline can group its layers without the others.

A function defines `factor`. `threshold: True` says that it leaves gradients within the bound unchanged, so that there is a
threshold that can adapt.
"""
