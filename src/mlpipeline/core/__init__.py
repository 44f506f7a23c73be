"""What every layer above shares: the configuration, the errors and the component interfaces."""
