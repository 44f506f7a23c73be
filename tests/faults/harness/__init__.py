"""One training under one fault, and what became of its records; read by the tests beside this folder.

::

    scenarios   the table: what goes wrong, for whom, and what is promised
    trainings   small real trainings, each a program of its own that notes its steps
    trying      training ─ fault ─ healed ─ mlpipeline sync ─► Outcome
    pictures    what plain MLflow finds, and what of it is missing or there twice
    page        docs/reliability.md, between its markers
"""
