"""What the tests with real clients share: a runner, a daemon to torture, tools to do it with."""
