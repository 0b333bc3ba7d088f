{% include cookiecutter.service_type ~ '/config.py' %}
