// Package install carries the Helm chart in the binary, so that `hauberk
// install` needs no files. It owns the chart's content and nothing of how it
// is applied. Custom resource definitions are in the package crds beside it.
package install

import (
	"embed"
	"fmt"
	"io/fs"
)

//go:embed all:charts/hauberk
var charts embed.FS

// File is one file of the chart, named relative to the chart.
type File struct {
	Name string
	Data []byte
}

// Chart is the files of the chart "hauberk".
func Chart() ([]File, error) {
	root, err := fs.Sub(charts, "charts/hauberk")
	if err != nil {
		return nil, fmt.Errorf("embedded chart: %w", err)
	}
	var files []File
	err = fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(root, path)
		files = append(files, File{path, data})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("embedded chart: %w", err)
	}
	return files, nil
}
