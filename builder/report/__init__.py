"""What people and scripts read: tables, messages and JSON, made from values. Nothing here prints or reads a file."""
