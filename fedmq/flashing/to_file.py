"""`--target bundle`: one file."""

from __future__ import annotations

from fedmq.flashing.job import Job, tell, tell_of_software


def bundle(job: Job, _where: str) -> None:
    """Make one file that installs itself."""
    member = job.member()
    arch, python = job.arch or "arm64", job.python or "3.11"
    plan = job.plan(member, arch=arch, python=python)
    made = job.write(plan, job.out / f"fedmq-{job.name}-{arch}-python{python}.run")
    tell_of_software(made)
    tell("bundle", f"{made.path}; yours alone to read")
    if member.has_key:
        tell("secret", "it holds the device's private key: delete it once the device has it")
    if not member.can_come_in:
        tell("key", "not in it: it is on the board that made it, and this is for that board alone")
    tell("next", f"copy it to the board, and run there: sudo sh {made.path.name}")
