"""Images for people: contact_sheet.py draws queried images beside their nearest neighbours, patch_overlay.py lays a map
of its patches over an image.
"""
