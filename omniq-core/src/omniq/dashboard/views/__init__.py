"""What each page shows, and what each of its forms does."""
