"""Image files in, stored vectors out. torch and transformers live here."""
