"""What a run amounts to: figures (`report.json`) and pictures (`report.html`)."""
