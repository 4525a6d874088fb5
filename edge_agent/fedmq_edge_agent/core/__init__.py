"""What a device decides: pure, driven by events and a clock that is an argument.

machine        the whole: an event in, effects out, and the next deadline
conversation   what the coordinator says; inbox judges whether to believe it
workshop       the trainer's work; supervision keeps the child alive
following      the run's model; download fetches what lacks, replica joins it to the chain of hashes
outbox         updates until their receipt
desk           what these share: ledger (what is durable), contact (who is there), leases
words          what the device waits for, in a sentence
state          what survives a restart
events, effects
"""
