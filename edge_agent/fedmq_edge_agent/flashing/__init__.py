"""Turning a bare board into a member of a federation: what it needs, in one archive, and the ways to get it there.

On the operator's machine:

    platforms      which boards, and what a wheel for one is called
    requirements   PEP 508: which of a wheel's requirements hold on the board, not here
    wheels         fetched for the board, with all that they need; kept for the next time
    own            our own code as a wheel, as it runs here
    tasks          what the device trains, as files
    settings       device.toml, the certificate and the key, as they lie on the device
    bundle         all of it in one file that installs itself
    remote         onto a board that answers to ssh
    sdcard         onto the image of an SD card: partitions and filesystems look into it, network is what it is told

On the device, with all that the bundle brought: `identity` makes a key that never leaves it.

On the device, inside the bundle, and with nothing but the board's own shell and Python: `install.sh` and `unpack.py`.
"""
