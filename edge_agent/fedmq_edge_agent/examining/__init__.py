"""What stands behind `fedmq agent doctor`: checks on the device, each with what was found and how to mend it.

`findings` is what a check says, `course` runs checks in order, each within its time, and `checks` is the table of them.
Nothing is left behind: no file, no message that counts, and no connection in the name of a device whose agent runs.
Imports neither PyTorch nor NumPy: whether they work is tried in a child process.
"""

from __future__ import annotations
