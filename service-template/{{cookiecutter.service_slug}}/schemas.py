{% include cookiecutter.service_type ~ '/schemas.py' %}
