"""HTTP below the application: connections with deadlines and a limit on their number, and who may send requests.

connections  protocol.py gives each connection a deadline; registry.py limits their number; descriptors.py fits the
             limits to the process; uvicorn_server.py puts them together; repeated_log.py bounds what is logged
requests     access.py checks the headers Host, Origin, Sec-Fetch-Site and Authorization
"""
