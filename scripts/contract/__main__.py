"""`python -m scripts.contract` writes the files; with --check it exits 1 on a stale one."""

from scripts.contract.files import main

main()
