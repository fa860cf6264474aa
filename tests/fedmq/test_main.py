import subprocess
import sys

from servers import ROOT


def told(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_library_that_is_not_installed_is_one_line_that_says_what_to_install() -> None:
    done = told("import sys; sys.modules['typer'] = None; from fedmq.__main__ import main; main()")
    assert done.returncode == 2
    assert done.stderr.startswith("fedmq: typer is not installed: pip install 'fedmq[server]'")
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_while_it_imports_is_no_traceback() -> None:
    done = told(
        "import sys\n"
        "class Ctrl:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'fedmq.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Ctrl())\n"
        "from fedmq.__main__ import main; main()"
    )
    assert (done.returncode, done.stderr) == (130, "")


def test_it_is_the_command_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedmq", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("fedmq ")
