# SPDX-License-Identifier: Apache-2.0
"""Models built on neighborhood attention, with the architectures that their authors published.

One module a family, each with a frozen config, the model, and `VARIANTS`, the published configs by name:
`nat` (NAT and DiNAT), `dinat_s`, `isotropic`. `flax_layers.pretrained` reads and writes published weights.

Models are nnx modules. In linen they are used through Flax's bridge, `flax.nnx.bridge.to_linen(NAT, config)`.
Dropout and stochastic depth are on until `model.eval()`, as in Flax's own layers.
"""
