"""What stands behind `explore`: what each view shows, and the page that shows it."""
