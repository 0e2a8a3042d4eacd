package build

import (
	"os"
	"path/filepath"
	"testing"
)

func TestModuleKeyFollowsItsSources(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	key := func(goVersion string, targets ...target) string {
		t.Helper()
		k, err := moduleKey(dir, goVersion, targets)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write("go.mod", "module a")
	write("go.sum", "x")
	first := key("go1.26.0", target{name: "a"})
	if again := key("go1.26.0", target{name: "a"}); again != first {
		t.Errorf("same sources gave %s and %s", first, again)
	}
	write("README.md", "no source")
	if again := key("go1.26.0", target{name: "a"}); again != first {
		t.Error("a file which is no source changed the key")
	}
	seen := map[string]string{first: "the first"}
	differs := func(what, k string) {
		t.Helper()
		if other, ok := seen[k]; ok {
			t.Errorf("%s has the key of %s", what, other)
		}
		seen[k] = what
	}
	differs("another Go", key("go1.26.1", target{name: "a"}))
	differs("another flag", key("go1.26.0", target{name: "a", ldflags: "-s"}))
	write("go.sum", "y")
	differs("another go.sum", key("go1.26.0", target{name: "a"}))
	write("main.go", "package main")
	differs("another source", key("go1.26.0", target{name: "a"}))
}

func TestKubernetesTargetsCarryTheVersion(t *testing.T) {
	for _, target := range kubernetesTargets() {
		want := "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1" +
			" -X k8s.io/component-base/version.gitMinor=36 -X k8s.io/component-base/version.gitTreeState=clean"
		if target.ldflags != want {
			t.Errorf("%s: flags %q, want %q", target.name, target.ldflags, want)
		}
	}
}
