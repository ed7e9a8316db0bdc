"""Training that resumes, on one device or several."""
