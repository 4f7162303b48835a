"""Commands of ``python -m dualpipe`` that are about schedules: a module each, with ``add_arguments`` and ``run``."""
