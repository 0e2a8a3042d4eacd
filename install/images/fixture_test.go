package main

import (
	"archive/tar"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// debianCache is the user's own, so that packages are fetched once a machine.
func debianCache(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("left out: the images take files from Debian packages and this machine has no apt-get")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(cache, "hauberk", "debian")
}

// fixture is a checkout with two small commands and another module with one.
func fixture(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"go.mod": "module github.com/hauberk-mesh/hauberk\n\ngo 1.26\n",
		"internal/version/version.go": `package version

var Version, Commit string
`,
		"cmd/one/main.go": `package main

import "github.com/hauberk-mesh/hauberk/internal/version"

func main() { println("one", version.Version, version.Commit) }
`,
		"cmd/two/main.go":   "package main\n\nfunc main() { println(\"two\") }\n",
		"other/go.mod":      "module example.com/other\n\ngo 1.26\n",
		"other/main.go":     "package main\n\nfunc main() { println(\"other\") }\n",
		"cmd/empty/read.me": "no source here\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func fixtureSpecs() []spec {
	return []spec{
		{Name: "pair", Title: "Pair", Description: "Two commands.", User: nonroot, Binaries: []binary{component("one"), component("two")}},
		{Name: "other", Title: "Other", User: "0:0", Binaries: []binary{{Name: "other", Package: ".", Module: "other"}}},
	}
}

// fixtureBuilder builds the fixture at root into a folder of its own.
func fixtureBuilder(t *testing.T, root string, specs []spec) builder {
	t.Helper()
	out := t.TempDir()
	return builder{
		specs: specs,
		compiler: compiler{
			root: root, arch: "amd64", version: "v1.2.3", commit: "abc",
			binDir: filepath.Join(out, "bin"), cache: t.TempDir(),
		},
		debian:  debian{cache: debianCache(t), arch: "amd64"},
		release: release{version: "v1.2.3", revision: "abc", created: time.Unix(1_700_000_000, 0).UTC(), arch: "amd64"},
		out:     out,
		step:    progress(io.Discard, false),
	}
}

// unpack lays an image's files out in a folder, as a container runtime would.
func unpack(t *testing.T, image v1.Image, into string) {
	t.Helper()
	content := mutate.Extract(image)
	defer content.Close()
	for files := tar.NewReader(content); ; {
		header, err := files.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(into, header.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		switch header.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(header.Linkname, path)
		default:
			var raw []byte
			if raw, err = io.ReadAll(files); err == nil {
				err = os.WriteFile(path, raw, os.FileMode(header.Mode))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
