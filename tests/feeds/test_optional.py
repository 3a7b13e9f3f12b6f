import subprocess
import sys

import pytest

from fptq.errors import MissingExtra
from fptq.feeds import optional


def test_a_missing_package_names_its_extra():
    with pytest.raises(
        MissingExtra, match=r"no_such_package is not installed.*cleaning masks needs it.*fptq\[medical\]"
    ):
        optional("no_such_package.part", extra="medical", purpose="cleaning masks")


def test_optional_packages_are_not_imported_until_needed():
    code = (
        "import sys, fptq.feeds, fptq.tasks, fptq.demo\n"
        "heavy = {'torch', 'scipy', 'nibabel', 'SimpleITK', 'monai', 'openvino', 'onnxruntime', 'Bio', 'tmtools'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
