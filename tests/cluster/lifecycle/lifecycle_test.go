package lifecycle

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindCheckout(t *testing.T) {
	root := t.TempDir()
	deep := filepath.Join(root, "docs", "users")
	module := filepath.Join(root, "tests", "cluster", "kubernetes")
	for _, dir := range []string{deep, module} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := FindCheckout(deep); err == nil || !strings.Contains(err.Error(), "is not in a checkout of Hauberk") {
		t.Errorf("no checkout: %v", err)
	}
	if err := os.WriteFile(filepath.Join(module, "go.mod"), []byte("module x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{root, deep, module} {
		got, err := FindCheckout(from)
		if err != nil || got.Dir != root {
			t.Errorf("from %s: %q, %v", from, got.Dir, err)
		}
	}
}

func TestBlameShowsTheEndOfTheLog(t *testing.T) {
	u := &upRun{checkout: Checkout{Dir: t.TempDir()}}
	err := u.blame("etcd", errors.New("it ended"))
	if !strings.Contains(err.Error(), "etcd: it ended (no log at ") {
		t.Errorf("without a log: %v", err)
	}
	if err := os.MkdirAll(u.checkout.Logs(), 0o755); err != nil {
		t.Fatal(err)
	}
	path := u.checkout.Log("etcd")
	if err := os.WriteFile(path, []byte("first line\n"+strings.Repeat("middle\n", 20)+"last line\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	said := u.blame("etcd", errors.New("it ended")).Error()
	for want, in := range map[string]bool{"etcd: it ended": true, path: true, "last line": true, "first line": false} {
		if strings.Contains(said, want) != in {
			t.Errorf("%q in the message: %v, want %v\n%s", want, !in, in, said)
		}
	}
}

func TestWriteWholeReplacesAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "file")
	for _, content := range []string{"long content", "short"} {
		if err := writeWhole(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("file is %q, %v", got, err)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("files besides it: %v, %v", entries, err)
	}
}
