"""How workers reach each other; nothing above this folder imports a backend."""

import torch

if torch.distributed.is_available():
    # Its functions keep the default group that there is when it is imported, and making a torch optimizer imports it.
    # A group that is kept outlives `destroy_process_group()`. Then Gloo's threads may let go of a tensor while Python
    # ends, and the process ends by SIGABRT instead.
    import torch.distributed.nn.functional
