"""Who calls: what tokens and API keys show, and whether there must be one. Free of transport."""
