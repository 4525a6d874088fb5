"""The edge agent: a pure core (`core`), a light supervisor (`shell`), and the trainer child (`trainer`)."""
