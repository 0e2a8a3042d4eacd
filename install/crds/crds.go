// Package crds holds Hauberk's CustomResourceDefinitions, which `make generate`
// writes from api/v1alpha1. It owns the files and their reading; it neither
// validates objects (the API server does) nor installs anything.
package crds

import (
	"embed"
	"fmt"
	"io/fs"
	"sort"
)

//go:embed *.yaml
var files embed.FS

// Files is the definitions, one YAML document a file, sorted by file name.
func Files() (map[string][]byte, []string, error) {
	entries, err := fs.ReadDir(files, ".")
	if err != nil {
		return nil, nil, fmt.Errorf("list the embedded CRDs: %w", err)
	}
	byName := make(map[string][]byte, len(entries))
	var order []string
	for _, e := range entries {
		data, err := files.ReadFile(e.Name())
		if err != nil {
			return nil, nil, fmt.Errorf("read the embedded CRD %s: %w", e.Name(), err)
		}
		byName[e.Name()] = data
		order = append(order, e.Name())
	}
	sort.Strings(order)
	return byName, order, nil
}
