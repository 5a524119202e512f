"""OmniQ's tasks in MySQL and MariaDB."""
