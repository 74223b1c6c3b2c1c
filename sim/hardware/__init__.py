"""Real models on a real device, in torch: the only package that imports it (extra `profile`).

model: a transformer that is partly on a GPU, or on one core of the CPU in a GPU's place. measure: the profiler.
server: a small server of many models under the policies of `policies/`. validate: what the server measures against what
the simulator predicts. The command line imports these inside its verbs.
"""
