"""Runs inside a stack: one stage per process, job.json in, result.json and files out."""
