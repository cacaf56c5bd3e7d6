package pool

import (
	"iter"
	"time"

	"go.uber.org/zap"
)

// worker is what is known of a worker ID.
type worker struct {
	alive bool
	files int
}

// countWorkers counts the files of each worker ID. It is the one count of workers.
func countWorkers(files iter.Seq[*file], into map[string]worker) {
	for t := range files {
		if t.name.Archive || t.nameErr != nil || t.state == unasked {
			continue
		}
		w := into[t.name.ID]
		w.files++
		w.alive = w.alive || t.isAlive()
		into[t.name.ID] = w
	}
}

// reportEvery is how often the coming and going of workers is summed up in the log.
const reportEvery = time.Minute

// census takes note of which workers come and go. Guarded by Pool.mu.
type census struct {
	logger *zap.Logger
	// workers are those of the last count, and before the map for the next one, so that none is made anew.
	workers, before map[string]worker
	alive           int
	came, went      int // since reportedAt
	reportedAt      time.Time
}

// take counts the workers that have one of the files, and compares with the last count.
func (c *census) take(files iter.Seq[*file], at time.Time) {
	if c.workers == nil {
		c.workers, c.before = map[string]worker{}, map[string]worker{}
	}
	now := c.before
	clear(now)
	countWorkers(files, now)
	c.alive = 0
	for id, w := range now {
		if w.alive {
			c.alive++
		}
		was, known := c.workers[id]
		switch {
		case w.alive && !known:
			c.came++
			c.logger.Debug("worker found", zap.String("worker", id))
		case w.alive && !was.alive:
			c.came++
			c.logger.Debug("worker writes again to the files of a dead one", zap.String("worker", id))
		case !w.alive && was.alive:
			c.went++
			c.logger.Debug("worker is dead; what it counted stays in the totals", zap.String("worker", id))
		}
	}
	for id, was := range c.workers {
		if _, there := now[id]; !there && was.alive {
			c.went++
		}
	}
	c.workers, c.before = now, c.workers
	if (c.came > 0 || c.went > 0) && at.Sub(c.reportedAt) >= reportEvery {
		c.logger.Info("workers started and ended", zap.Int("started", c.came), zap.Int("ended", c.went), zap.Int("alive", c.alive))
		c.came, c.went, c.reportedAt = 0, 0, at
	}
}
