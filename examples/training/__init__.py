# SPDX-License-Identifier: Apache-2.0
"""Training, as the examples of this folder need it.

`recipe`: what is trained, and how, as data. `data`, `augment`, `rand_augment`: images. `step`, `mixing`,
`schedule`, `mesh`: one step of training. `loop`, `checkpoint`, `history`: many of them, and resuming.
`progress`, `report`, `attention_maps`: what is seen of it.

Everything random follows from the seed and the number of the step, never from what has run before. So a run
that was killed goes on from its last checkpoint as if nothing had happened, bit by bit.
"""
