"""Groups of commands beside `clipfake store`: bank.py has `clipfake bank …`, head.py `clipfake head …`."""
