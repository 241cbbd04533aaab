"""Inference graphs: what a file says, whether it can work, and what it looks like. Nothing here calls anything.

`reading` turns the text of a file into a `definition.Graph`, whichever of the dialects it is written in: our own
(`native`), KServe's InferenceGraph (`kserve`), Seldon Core 1's SeldonDeployment (`seldon`) or a Triton ensemble's
config.pbtxt (`triton`). `validate` looks for what cannot work, `draw` makes a picture. `conditions` and `gjson` decide
on the data, `bandit` which way to try, `combine` what several answers are together, `messages` and `v2_wire` turn
tensors into what other servers speak and back. `runtime.graphs` runs graphs with all this.
"""
