"""What every test finds: all methods and protocols of the house registered, as in any command."""

from twinbench.harness.plugins import load_plugins

load_plugins()
