"""The rooms of `app.py`: a file for each tab, and what the tabs share.

They need gradio and spaces (`pip install textir[app]`); nothing else in `textir` imports them.
"""
