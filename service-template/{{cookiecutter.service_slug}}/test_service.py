{% include cookiecutter.service_type ~ '/test_service.py' %}
