"""Small weights this project trained itself, and the scripts that made them."""
