"""Every way in which a quantized layer can run here."""
