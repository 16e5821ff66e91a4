"""The console script, also for ``python -m``."""


def main() -> None:
    """Run the command line; `harness.ending.Commands` says what the exit codes mean."""
    from twinbench.harness.cli import app

    app(prog_name="twinbench")


if __name__ == "__main__":
    main()
