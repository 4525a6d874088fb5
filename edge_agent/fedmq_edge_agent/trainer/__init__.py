"""The trainer: a child process that does all model-sized work, and the client by which a supervisor talks to it.

    supervisor  client.py ── channel.py ── __main__.py | nursery.py  child
                                           host.py        the operations
                                           task.py, loading.py, dataset.py, context.py   what the user brings
                                           tensors.py, supervised.py, feedback.py, weights.py   the work itself

`channel`, `client`, `durable` and `trial` serve the parent too: they import neither PyTorch nor NumPy.
"""
