"""The dashboard: what the command line and the API show and change of a fleet, as pages on the API's server.

Pages are rendered here, by Jinja, and are whole without any script; one small script asks again every few seconds and
puts what has changed into its place. So there is no state but a session, nothing is fetched from anywhere else, and
the content security policy allows no inline script or style and no ``eval``, which a page built in the browser needs.
Everything comes from the store through its repositories, and is changed through the functions that the command line
calls.

    app.py       mounts it under ``/dashboard``: headers, errors, files
    access.py    who looks: log in by a token, a cookie, roles
    rendering.py templates and the words of figures
    …            one module a page; ``pictures`` and ``charts`` are pure geometry
"""
