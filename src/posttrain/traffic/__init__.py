"""The traffic log: what was asked and answered, kept so that nothing acknowledged is lost."""
