"""patchdeploy: one frozen base network, a tiny patch per task and resolution."""
