"""Serves the chips of one host of a TPU slice: `python scripts/tpu_server.py`.

Runs on every host; the training runs on the first one, names all servers with
`--tpu=grpc://HOST:8470,…`, and drives them. `scripts/tpu_vm.py` starts them.
"""

import tensorflow as tf

# Who connects says which machines take part, and which of them this is.
tf.distribute.Server({"worker": ["localhost:8470"]}, "worker", task_index=0).join()
