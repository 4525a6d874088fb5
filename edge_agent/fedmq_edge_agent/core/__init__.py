"""What a device decides: pure, driven by events and a clock that is an argument.

`machine.Agent` is the whole; `inbox` judges what arrives, `replica` and `download` keep the model versions, `outbox`
keeps updates until their receipt, `supervision` keeps the trainer child, `state` is what survives a restart.
"""
