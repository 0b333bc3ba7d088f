{% include cookiecutter.service_type ~ '/main.py' %}
