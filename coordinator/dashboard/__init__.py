"""The dashboard: web pages on the API's server that show and change what the command line and the API do.

Pages are rendered here, with Jinja, and work without any script. One small script requests the page again every few
seconds and replaces what has changed. So the only state is a session, nothing is loaded from another server, and the
content security policy allows no inline script or style and no ``eval``, which a page built in the browser would need.
All data is read from the store through its repositories, and changed by the functions that the command line calls.

    app.py       mounts it under ``/dashboard``: headers, errors, files
    access.py    authentication: login with a token, a cookie, roles
    rendering.py templates, and how figures are written
    …            one module per page; ``pictures`` and ``charts`` are pure geometry
"""
